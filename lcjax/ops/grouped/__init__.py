"""Products of rows with the matrices of their experts, for a mixture of experts.

routing.py  which rows belong to which expert, and tokens to rows and back
product.py  the product and its derivatives
scan.py     its implementation in XLA, block by block
load.py     how much each expert is used, and the loss that balances it
"""

from __future__ import annotations

from lcjax.ops.grouped.load import ExpertLoad as ExpertLoad
from lcjax.ops.grouped.load import load_balancing_loss as load_balancing_loss
from lcjax.ops.grouped.product import grouped_product as grouped_product
from lcjax.ops.grouped.product import of_experts as of_experts
from lcjax.ops.grouped.routing import Routing as Routing
from lcjax.ops.grouped.routing import collect as collect
from lcjax.ops.grouped.routing import dispatch as dispatch
from lcjax.ops.grouped.routing import route as route
