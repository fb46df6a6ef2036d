"use strict";
// Everything here is a convenience: the page is whole without it.
(() => {
  const words = JSON.parse(document.getElementById("data").textContent).words;
  const fill = (text, values) => text.replace(/\{(\w+)\}/g, (_, name) => values[name]);
  const make = (tag, properties, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };

  // sort: a click on a head, numbers by value, texts by the language of the page, "–" always last
  const keyOf = (row, column) => {
    const cell = row.cells[column];
    const value = cell.dataset.v ?? cell.textContent.trim();
    return value === "" || value === "–" ? null : value;
  };
  const order = (a, b) => {
    const [x, y] = [Number(a), Number(b)];
    return Number.isNaN(x) || Number.isNaN(y)
      ? String(a).localeCompare(String(b), document.documentElement.lang, { numeric: true }) : x - y;
  };
  const sort = (table, head) => {
    const column = head.cellIndex, body = table.tBodies[0];
    const first = head.classList.contains("text") ? "ascending" : "descending";
    const other = first === "ascending" ? "descending" : "ascending";
    const direction = head.getAttribute("aria-sort") === first ? other : first;
    for (const each of table.tHead.rows[0].cells) each.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", direction);
    const sign = direction === "ascending" ? 1 : -1;
    const rows = [...body.rows].map((row, place) => ({ row, place, key: keyOf(row, column) }));
    rows.sort((a, b) => {
      if (a.key === null || b.key === null) return (a.key === null) - (b.key === null) || a.place - b.place;
      return sign * order(a.key, b.key) || a.place - b.place;
    });
    body.append(...rows.map((each) => each.row));
  };
  for (const table of document.querySelectorAll("table")) {
    for (const head of table.tHead.rows[0].cells) {
      const label = head.textContent;
      const button = make("button", { type: "button", textContent: label });
      button.setAttribute("aria-label", fill(words.sort, { label }));
      button.addEventListener("click", () => sort(table, head));
      head.replaceChildren(button);
    }
  }

  // filter: every word must be found in the row
  for (const holder of document.querySelectorAll("[data-filter]")) {
    const rows = [...holder.querySelector("tbody").rows];
    const texts = rows.map((row) => row.textContent.toLowerCase());
    const field = make("input", { type: "search", placeholder: words.filter_hint });
    const count = make("span", { role: "status" });
    const show = () => {
      const parts = field.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      rows.forEach((row, i) => {
        row.hidden = !parts.every((part) => texts[i].includes(part));
        shown += !row.hidden;
      });
      count.textContent = fill(words.shown, { n: shown, all: rows.length });
    };
    field.addEventListener("input", show);
    show();
    holder.prepend(make("div", { className: "tools" }, make("label", {}, words.filter + " ", field), count));
  }

  // choose the metric: one set of figures at a time
  const figures = [...document.querySelectorAll("figure[data-metric]")];
  const metrics = [...new Set(figures.map((figure) => figure.dataset.metric))];
  if (metrics.length > 1) {
    const choose = (metric) => {
      figures.forEach((figure) => { figure.hidden = figure.dataset.metric !== metric; });
      document.querySelectorAll(".pictures").forEach((group) => { group.hidden = ![...group.children].some((f) => !f.hidden); });
      buttons.forEach((button) => button.setAttribute("aria-pressed", button.value === metric));
    };
    const buttons = metrics.map((metric) =>
      make("button", { type: "button", value: metric, textContent: words.metrics[metric] ?? metric }));
    buttons.forEach((button) => button.addEventListener("click", () => choose(button.value)));
    figures[0].parentElement.before(make("div", { className: "tools", id: "metric" }, words.metric, ...buttons));
    choose(metrics[0]);
  }

  // hover: the browser's slow tooltips become quick ones that follow the pointer
  const tip = make("div", { id: "tip", hidden: true });
  tip.setAttribute("role", "tooltip");
  document.body.append(tip);
  const place = (event) => {
    const box = tip.getBoundingClientRect();
    tip.style.left = Math.max(4, Math.min(event.clientX + 12, innerWidth - box.width - 4)) + "px";
    tip.style.top = Math.max(4, event.clientY - box.height - 10) + "px";
  };
  for (const note of document.querySelectorAll(".note")) {
    const title = note.querySelector("title"), text = title.textContent;
    title.remove();
    note.setAttribute("aria-label", text);
    note.addEventListener("pointerenter", (event) => { tip.textContent = text; tip.hidden = false; place(event); });
    note.addEventListener("pointermove", place);
    note.addEventListener("pointerleave", () => { tip.hidden = true; });
  }
})();
