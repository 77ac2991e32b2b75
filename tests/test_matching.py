"""The assignment against brute force and scipy, the cost against loops, and matching over a mesh."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detr_jax.config import GIoUCost, L1Cost, SoftmaxCost
from detr_jax.matching import UNMATCHED, callbacks_may_starve, match, matching_cost
from detr_jax.sharding import create_mesh
from detr_jax.structures import Predictions, Targets
from detr_jax.testing import reference_giou, reference_match

both_solvers = pytest.mark.parametrize("solver", ["scipy", "device"])


compiled_match = jax.jit(match, static_argnames=("solver", "mesh"))


def solve(cost, count, solver):
    return np.asarray(compiled_match(jnp.asarray(cost, jnp.float32), jnp.asarray(count, jnp.int32), solver))


def total_cost(cost, queries):
    """Cost of an assignment, queries [T], of one image [Q, T]; checks that it is one."""
    matched = queries != UNMATCHED
    assert matched.sum() == min(cost.shape)
    assert len(set(queries[matched])) == matched.sum(), "a query was given to two targets"
    assert ((queries >= 0) & (queries < len(cost)))[matched].all()
    return cost[queries[matched], np.flatnonzero(matched)].astype(np.float64).sum()


def brute_force_cost(cost):
    """Lowest total cost over all assignments of one image [Q, T]."""
    cost = cost.T if cost.shape[0] < cost.shape[1] else cost  # [longer, shorter]
    longer, shorter = cost.shape
    return min(cost[list(rows), range(shorter)].sum() for rows in itertools.permutations(range(longer), shorter))


@both_solvers
@pytest.mark.parametrize(("queries", "targets"), [(6, 3), (5, 5), (3, 6), (4, 1), (1, 4), (1, 1)])
def test_total_cost_is_that_of_brute_force(rng, solver, queries, targets):
    cost = rng.normal(size=(2, 3, queries, targets))
    assigned = solve(cost, [targets] * 3, solver)
    for layer, image in np.ndindex(2, 3):
        expected = brute_force_cost(cost[layer, image])
        assert total_cost(cost[layer, image], assigned[layer, image]) == pytest.approx(expected, abs=1e-4)


@both_solvers
@pytest.mark.parametrize("crowded", [False, True])
@pytest.mark.parametrize(("queries", "targets"), [(100, 25), (20, 40)])
def test_total_cost_is_that_of_scipy_for_any_count(rng, solver, queries, targets, crowded):
    layers, batch = 3, 4
    cost = rng.uniform(-3, 8, (layers, batch, queries, targets)).astype(np.float32)
    count = np.array([targets, 0, targets - 1, targets] if crowded else [0, 1, targets // 2, targets])
    assigned = solve(cost, count, solver)
    reference = reference_match(cost, count)
    for layer, image in np.ndindex(layers, batch):
        real = cost[layer, image, :, : count[image]]
        found, expected = (queries[layer, image, : count[image]] for queries in (assigned, reference))
        assert total_cost(real, found) == pytest.approx(total_cost(real, expected), rel=1e-5)
        assert (assigned[layer, image, count[image] :] == UNMATCHED).all()


@both_solvers
def test_a_unique_optimum_is_found_query_by_query(rng, solver):
    queries, targets = 30, 12
    planted = rng.permutation(queries)[:targets]
    # dual feasible by construction: any other assignment costs at least 0.1 more, yet the cheapest query of a
    # target is mostly not its own
    query_price = np.zeros(queries)
    query_price[planted] = -rng.uniform(0, 5, targets)
    slack = rng.uniform(0.1, 1, (queries, targets))
    slack[planted, range(targets)] = 0
    cost = query_price[:, None] + rng.normal(size=targets) + slack
    np.testing.assert_array_equal(solve(cost[None, None], [targets], solver)[0, 0], planted)


@both_solvers
@pytest.mark.parametrize("targets", [0, 3])
def test_an_image_without_targets_matches_nothing(rng, solver, targets):
    assigned = solve(rng.normal(size=(2, 2, 5, targets)), [0, 0], solver)
    assert assigned.shape == (2, 2, targets)
    assert (assigned == UNMATCHED).all()


@both_solvers
@pytest.mark.parametrize("queries", [9, 4], ids=["enough-queries", "too-few-queries"])
@pytest.mark.parametrize("filling", [np.nan, np.inf, -np.inf, 1e5, -1e5])
def test_columns_behind_count_do_not_matter(rng, solver, queries, filling):
    cost = rng.normal(size=(100, 1, queries, 8))
    expected = solve(cost, [6], "scipy")
    cost[..., 6:] = filling
    np.testing.assert_array_equal(solve(cost, [6], solver), expected)


@both_solvers
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("share", [0.2, 1.0])
@pytest.mark.parametrize("targets", [4, 9])
def test_costs_that_are_not_finite_still_give_an_assignment(rng, solver, value, share, targets):
    cost = rng.normal(size=(2, 2, 6, targets))
    cost[rng.random(cost.shape) < share] = value
    for found in solve(cost, [targets] * 2, solver).reshape(-1, targets):
        total_cost(np.zeros((6, targets)), found)


@both_solvers
def test_a_query_that_is_not_a_number_is_avoided(rng, solver):
    cost = rng.normal(size=(1, 1, 8, 5))
    cost[0, 0, 3] = np.nan
    assigned = solve(cost, [5], solver)[0, 0]
    best = brute_force_cost(np.delete(cost[0, 0], 3, axis=0))
    assert total_cost(cost[0, 0], assigned) == pytest.approx(best, abs=1e-4)


def test_an_unknown_solver_is_refused_by_name():
    with pytest.raises(ValueError, match=r"solver='hungarian'.*'scipy' or 'device'"):
        match(jnp.zeros((1, 1, 2, 2)), jnp.zeros(1, jnp.int32), "hungarian")


@both_solvers
def test_matching_over_four_devices_equals_that_on_one(rng, solver):
    mesh = create_mesh()
    assert mesh.size == 4
    assert not callbacks_may_starve(mesh), "scipy would silently be replaced"
    cost = jnp.asarray(rng.normal(size=(2, 8, 20, 6)), jnp.float32)
    count = jnp.asarray(rng.integers(0, 7, 8), jnp.int32)
    over_mesh = compiled_match(cost, count, solver, mesh)
    np.testing.assert_array_equal(over_mesh, solve(cost, count, solver))


@pytest.mark.parametrize(("threads", "starves"), [("4", True), ("15", True), ("16", False), ("32", False)])
def test_a_small_thread_pool_is_taken_for_a_danger_only_with_several_devices(monkeypatch, threads, starves):
    monkeypatch.setenv("NPROC", threads)
    assert callbacks_may_starve(create_mesh()) == starves
    assert not callbacks_may_starve(create_mesh(jax.devices()[:1]))
    assert not callbacks_may_starve(None)


def test_the_cost_follows_equation_one_and_has_no_gradient(rng):
    layers, batch, queries, classes, count = 2, 2, 5, 4, 3
    costs = {"class": SoftmaxCost(weight=1.5), "bbox": L1Cost(weight=4.0), "giou": GIoUCost(weight=2.5)}
    logits = rng.normal(size=(layers, batch, queries, classes + 1))
    boxes, wanted = (
        rng.uniform(0.2, 0.6, (layers, batch, queries, 4)),
        rng.uniform(0.2, 0.6, (batch, count, 4)),
    )
    labels = rng.integers(0, classes, (batch, count))
    targets = Targets(jnp.asarray(wanted, jnp.float32), jnp.asarray(labels), jnp.full(batch, count))

    def cost_of(logits, boxes):
        return matching_cost(Predictions(logits, boxes), targets, costs)

    arrays = jnp.asarray(logits, jnp.float32), jnp.asarray(boxes, jnp.float32)
    found = np.asarray(cost_of(*arrays))
    for layer, image, query, target in np.ndindex(found.shape):
        exponentials = np.exp(logits[layer, image, query])
        probability = exponentials[labels[image, target]] / exponentials.sum()
        box, other = boxes[layer, image, query], wanted[image, target]
        corners = [np.r_[b[:2] - b[2:] / 2, b[:2] + b[2:] / 2] for b in (box, other)]
        expected = -1.5 * probability + 4.0 * np.abs(box - other).sum() - 2.5 * reference_giou(*corners)
        assert found[layer, image, query, target] == pytest.approx(expected, abs=1e-4)
    gradients = jax.grad(lambda *arrays: cost_of(*arrays).sum(), argnums=(0, 1))(*arrays)
    assert not any(np.asarray(gradient).any() for gradient in gradients)
