"""Everything pytest-flops raises on purpose derives from `FlopsError`."""


class FlopsError(Exception):
    """Something the user can act on: the message names the thing and the way out."""


class TraceError(FlopsError):
    """A model that cannot be counted: not a module, scripted, or unable to run either way."""


class MeasurementError(FlopsError):
    """A model that cannot be measured: no device, no memory, other steps than were counted."""


class FormulaError(FlopsError):
    """A formula that cannot be registered, or that returned something other than FLOPs."""


class BaselineError(FlopsError):
    """A baseline file that cannot be read, trusted or written."""


class BudgetError(FlopsError):
    """A marker, an option or a call of the fixture that says something it cannot mean."""
