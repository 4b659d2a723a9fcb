"""Every built-in optimizer; importing this registers them.

To add one, write its function in the module of its family, or in a new one that is named here.
"""

from stepwell_server.core.compiler.definition import OPTIMIZERS as OPTIMIZERS
from stepwell_server.core.compiler.definition import Definition as Definition
from stepwell_server.core.compiler.definition import find_optimizer as find_optimizer
from stepwell_server.core.optimizers.adagrad import adadelta as adadelta
from stepwell_server.core.optimizers.adagrad import adadelta_ratio as adadelta_ratio
from stepwell_server.core.optimizers.adagrad import adagrad as adagrad
from stepwell_server.core.optimizers.adagrad import rmsprop as rmsprop
from stepwell_server.core.optimizers.adam import adam as adam
from stepwell_server.core.optimizers.adam import adamw as adamw
from stepwell_server.core.optimizers.adam import amsgrad as amsgrad
from stepwell_server.core.optimizers.adamax import adamax as adamax
from stepwell_server.core.optimizers.nadam import nadam as nadam
from stepwell_server.core.optimizers.sgd import nag as nag
from stepwell_server.core.optimizers.sgd import sgd as sgd
