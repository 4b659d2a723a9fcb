"""What a plug-in imports: an installed package that adds optimizers or schedules to the server.

    from stepwell_server.plugin import optimizer, sqrt

    @optimizer(reference="where the formula comes from", flavors={"torch": {}})
    def rule(param, grad, mean, *, step, lr=1e-3, beta1=0.9): ...

Its entry points name the modules: group "stepwell.optimizers" or "stepwell.schedules". `plugins.py` says how they are
loaded, CONTRIBUTING.md has a whole package. Below is everything that is public; the rest of the server may change.
"""

# Which values a hyperparameter takes.
from stepwell_server.core.arguments import ANY as ANY
from stepwell_server.core.arguments import COUNT as COUNT
from stepwell_server.core.arguments import DECAY_RATE as DECAY_RATE
from stepwell_server.core.arguments import FRACTION as FRACTION
from stepwell_server.core.arguments import NON_NEGATIVE as NON_NEGATIVE
from stepwell_server.core.arguments import POSITIVE as POSITIVE
from stepwell_server.core.arguments import REQUIRED as REQUIRED
from stepwell_server.core.arguments import Range as Range

# An optimizer as its equation, and one as array code over whole tensors; see `core/compiler/definition.py`.
from stepwell_server.core.compiler.definition import Definition as Definition
from stepwell_server.core.compiler.definition import optimizer as optimizer
from stepwell_server.core.compiler.definition import tensorwise as tensorwise

# What the body of an equation may call; max_abs, norm, size and sum_all make one number of all elements.
from stepwell_server.core.compiler.functions import cbrt as cbrt
from stepwell_server.core.compiler.functions import exp as exp
from stepwell_server.core.compiler.functions import log as log
from stepwell_server.core.compiler.functions import max_abs as max_abs
from stepwell_server.core.compiler.functions import maximum as maximum
from stepwell_server.core.compiler.functions import minimum as minimum
from stepwell_server.core.compiler.functions import norm as norm
from stepwell_server.core.compiler.functions import sign as sign
from stepwell_server.core.compiler.functions import size as size
from stepwell_server.core.compiler.functions import sqrt as sqrt
from stepwell_server.core.compiler.functions import sum_all as sum_all
from stepwell_server.core.compiler.functions import where as where

# A schedule as a function of the run's clock; see `core/schedules/definition.py`.
from stepwell_server.core.schedules.definition import schedule as schedule
