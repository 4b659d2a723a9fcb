"""Schedules: functions of a run's clock that give one number, a hyperparameter's value.

The families are imported for their effect: each enters its functions in the registry.
"""

from stepwell_server.core.schedules import composition as composition
from stepwell_server.core.schedules import cosine as cosine
from stepwell_server.core.schedules import cyclic as cyclic
from stepwell_server.core.schedules import decay as decay
from stepwell_server.core.schedules import one_cycle as one_cycle
from stepwell_server.core.schedules import piecewise as piecewise
from stepwell_server.core.schedules import plateau as plateau
from stepwell_server.core.schedules import warmup_decay as warmup_decay
from stepwell_server.core.schedules import with_warmup as with_warmup
from stepwell_server.core.schedules.definition import SCHEDULES as SCHEDULES
from stepwell_server.core.schedules.definition import ScheduleEntry as ScheduleEntry
from stepwell_server.core.schedules.definition import find_schedule as find_schedule
from stepwell_server.core.schedules.definition import list_schedules as list_schedules
from stepwell_server.core.schedules.schedule import DEPTH_MAX as DEPTH_MAX
from stepwell_server.core.schedules.schedule import LIST_LENGTH_MAX as LIST_LENGTH_MAX
from stepwell_server.core.schedules.schedule import NODES_MAX as NODES_MAX
from stepwell_server.core.schedules.schedule import PREVIEW_STEPS_MAX as PREVIEW_STEPS_MAX
from stepwell_server.core.schedules.schedule import Clock as Clock
from stepwell_server.core.schedules.schedule import Schedule as Schedule
from stepwell_server.core.schedules.schedule import preview as preview
