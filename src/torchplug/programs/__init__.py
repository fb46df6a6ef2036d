"""A training script of the user's own: the plan that it is given, and what it leaves behind.

``torchplug compare --command`` writes a plan of requests; the script applies it to the model that
it has built (:func:`torchplug.apply_plan`); a receipt beside the plan says what was done. The
environment of a script may have no more than torch.
"""

from torchplug.programs.apply import apply_plan as apply_plan
from torchplug.programs.receipt import receipt_path as receipt_path
from torchplug.programs.request_plan import ProgramControl as ProgramControl
from torchplug.programs.request_plan import RequestPlan as RequestPlan

__all__ = ["ProgramControl", "RequestPlan", "apply_plan", "receipt_path"]
