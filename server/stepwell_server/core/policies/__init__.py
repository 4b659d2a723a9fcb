"""How the updates of several workers become commits; importing this registers every policy."""

from stepwell_server.core.policies.asynchronous import Asynchronous as Asynchronous
from stepwell_server.core.policies.bounded import Bounded as Bounded
from stepwell_server.core.policies.decisions import Commit as Commit
from stepwell_server.core.policies.decisions import Contribution as Contribution
from stepwell_server.core.policies.decisions import Decision as Decision
from stepwell_server.core.policies.decisions import Drop as Drop
from stepwell_server.core.policies.decisions import Refuse as Refuse
from stepwell_server.core.policies.policy import POLICIES as POLICIES
from stepwell_server.core.policies.policy import Policy as Policy
from stepwell_server.core.policies.policy import parse_policy as parse_policy
from stepwell_server.core.policies.synchronous import Synchronous as Synchronous
