"""Every registered plugin, task and family: gradients beside finite differences in float64, rows that do not mix.

The registries say what is tried, so that a new member is tried without being named here. All of it: `pytest -m slow`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from every_member import EVERY_FAMILY, PLUGINS, TASKS, in_float64, made, slopes
from tiny_families import FAMILIES

from kinject.errors import InputError

WHOLE = {"few_shot_relations", "description_matching"}  # whose loss is of a batch's rows together
MEMBERS = [
    *(pytest.param({"method": one}, id=one, marks=[pytest.mark.slow] * (one != "map_tuning")) for one in PLUGINS),
    *(pytest.param({"family": one}, id=one, marks=pytest.mark.slow) for one in EVERY_FAMILY),
    *(pytest.param({"task": one}, id=one, marks=pytest.mark.slow) for one in TASKS),
]


def test_every_family_has_a_tiny_model():
    assert set(EVERY_FAMILY) == set(FAMILIES)


@pytest.fixture
def member(request):
    """(program, parameters, batch) in float64; what cannot be trained says so in a line, and is no member here."""
    with in_float64():
        try:
            yield made(**request.param)
        except InputError as error:
            pytest.skip(str(error))


@pytest.mark.parametrize("member", MEMBERS, indirect=True)
def test_the_gradient_is_the_slope_of_the_loss(member):
    try:
        slope, difference = slopes(*member)
    except InputError as error:
        if member[0].plugin is not None:
            raise
        pytest.skip(f"it has no loss: {error}")
    assert abs(slope - difference) <= 1e-6 * max(abs(difference), 1e-3) and slope != 0


@pytest.mark.slow
@pytest.mark.parametrize("member", MEMBERS, indirect=True)
def test_padding_order_and_splitting_change_nothing(member, request):
    """Outputs of the rows turned round, of half of them, and of texts with more padding behind are the same."""
    program, params, batch = member
    outputs = jax.jit(lambda some: program.outputs(params, some, None))
    whole = outputs(batch)
    rows = next(iter(batch.values())).shape[0]

    def of(some):
        return {
            name: values[jnp.asarray(some)] if values.shape[:1] == (rows,) else values for name, values in batch.items()
        }

    if program.task.made_as[0] in WHOLE:
        pytest.skip("its outputs are of all rows together")
    for some in (list(range(rows))[::-1], list(range(rows // 2))):
        np.testing.assert_allclose(outputs(of(some)), whole[jnp.asarray(some)], rtol=1e-9, atol=1e-9)
    length = batch["token_ids"].shape[-1]
    fill = {"entity_slot": -1, "segment_ids": 0}

    def longer(name, values):
        here = values.shape[-1:] == (length,) and name in (
            "token_ids",
            "segment_ids",
            "position_ids",
            "type_ids",
            "entity_slot",
        )
        more = [(0, 0)] * (values.ndim - 1) + [(0, 6)]
        return jnp.pad(values, more, constant_values=fill.get(name, 0)) if here else values

    padded = outputs({name: longer(name, values) for name, values in batch.items()})
    here = tuple(slice(0, size) for size in whole.shape)
    np.testing.assert_allclose(padded[here], whole, rtol=1e-9, atol=1e-9)
