"""Every gradient transform; importing this registers them. They run in a run's order on the combined gradient."""

from stepwell_server.core.transforms.clipping import adaptive_grad_clip as adaptive_grad_clip
from stepwell_server.core.transforms.clipping import clip_by_block_rms as clip_by_block_rms
from stepwell_server.core.transforms.clipping import clip_by_global_norm as clip_by_global_norm
from stepwell_server.core.transforms.clipping import clip_by_norm as clip_by_norm
from stepwell_server.core.transforms.clipping import clip_by_value as clip_by_value
from stepwell_server.core.transforms.clipping import normalize_by_update_norm as normalize_by_update_norm
from stepwell_server.core.transforms.definition import TRANSFORMS as TRANSFORMS
from stepwell_server.core.transforms.definition import Transforming as Transforming
from stepwell_server.core.transforms.definition import parse_transforms as parse_transforms
from stepwell_server.core.transforms.loss_scale import LossScale as LossScale
from stepwell_server.core.transforms.loss_scale import unscale as unscale
from stepwell_server.core.transforms.shaping import add_decayed_weights as add_decayed_weights
from stepwell_server.core.transforms.shaping import add_noise as add_noise
from stepwell_server.core.transforms.shaping import centralize as centralize
from stepwell_server.core.transforms.shaping import grad_ema as grad_ema
from stepwell_server.core.transforms.shaping import sparsity_lr as sparsity_lr
