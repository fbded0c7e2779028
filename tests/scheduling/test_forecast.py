"""The expected order of service, against a model that puts all jobs in order."""

from hypothesis import given, settings
from hypothesis import strategies as st

from evalrpc.scheduling.forecast import Forecast, Line
from evalrpc.scheduling.placement import QueuedJob
from evalrpc.scheduling.shares import Standing

lines_of_owners = st.lists(
    st.tuples(
        st.integers(1, 12),  # jobs
        st.integers(0, 12),  # urgent ones among them
        st.sampled_from([0.0, 0.1, 1.0, 7.0, 30.0, 1e6]),  # used per weight
        st.sampled_from([0.1, 0.3, 1.0, 3.0, 7.0]),  # weight
    ),
    min_size=1,
    max_size=6,
)


def forecast_of(script: list[tuple[int, int, float, float]]) -> Forecast:
    lines, sequence = [], 0
    for number, (count, urgent, used, weight) in enumerate(script):
        jobs = []
        for _ in range(count):
            sequence += 1
            jobs.append(QueuedJob(0, sequence * 7 % 101, f"{number}-{len(jobs)}", 1, 0.0, owner=str(number)))
        lines.append(Line(str(number), jobs, min(urgent, count), Standing(used, 0.0), weight))
    return Forecast(lines, typical_use=10.0)


def in_order(forecast: Forecast) -> list[QueuedJob]:
    """The model: the job at this place of its line comes when its owner has used so much more."""
    places = []
    for rank, line in enumerate(forecast.lines):
        for index, job in enumerate(line.jobs):
            used = line.standing.used_per_weight + index * 10.0 / line.weight
            places.append((index >= line.urgent_count, used, rank, index, job))
    return [place[-1] for place in sorted(places)]


@settings(deadline=None)
@given(lines_of_owners)
def test_positions_are_the_places_in_the_order_that_is_listed(script: list[tuple[int, int, float, float]]) -> None:
    forecast = forecast_of(script)
    expected = in_order(forecast)
    assert forecast.first(1000) == expected
    assert forecast.first(3) == expected[:3]
    for position, job in enumerate(expected):
        (line,) = (line for line in forecast.lines if line.owner == job.owner)
        index = line.jobs.index(job)
        assert forecast.position(job.owner, index) == position


def test_the_jobs_of_one_owner_are_in_their_own_order() -> None:
    forecast = forecast_of([(9, 4, 123.0, 0.3)])
    assert [forecast.position("0", index) for index in range(9)] == list(range(9))


def test_a_new_job_of_an_owner_without_any_comes_before_those_who_have_used_more() -> None:
    forecast = forecast_of([(5, 1, 100.0, 1.0), (5, 0, 10.0, 1.0)])
    new = Line("new", [], 0, Standing(0.0, 0.0), 1.0)
    assert forecast.position_of_new(new, 0, is_urgent=False) == 1, "behind the urgent one"
    assert forecast.position_of_new(new, 0, is_urgent=True) == 0
    last = new._replace(standing=Standing(1e6, 0.0))
    assert forecast.position_of_new(last, 0, is_urgent=False) == 10
    assert forecast.position_of_new(last, 0, is_urgent=True) == 1
    own = forecast.lines[0]
    assert forecast.position_of_new(own, 5, is_urgent=False) == 1 + 5 + 0, "its fifth comes before the first of the other"


def test_a_new_job_is_among_those_of_its_owner_also_if_one_of_them_has_used_more_meanwhile() -> None:
    forecast = forecast_of([(3, 0, 100.0, 1.0)])
    later = forecast.lines[0]._replace(standing=Standing(101.0, 0.0))
    assert [forecast.position_of_new(later, index, is_urgent=False) for index in range(4)] == [0, 1, 2, 3]
