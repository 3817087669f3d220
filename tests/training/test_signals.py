"""What a signal does to a run: it ends one that has nothing to save, and is noted by one that trains."""

import signal

import pytest

from fastirv2.errors import StoppedError, UsageError
from fastirv2.training.signals import Signals

HEARD = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)


@pytest.fixture(autouse=True)
def handlers():
    """Signals do what they do by default, and afterwards what they did before."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in HEARD}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", HEARD)
def test_while_it_trains_a_first_signal_is_noted_and_after_it_ctrl_c_alone_ends_the_run(number):
    signals = Signals()
    signals.training = True
    assert signal.getsignal(number) == signals._handle  # or this process would end
    for raised in (number, signal.SIGTERM):
        signal.raise_signal(raised)
        assert signals.received == number
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_before_it_trains_a_signal_ends_a_run_and_a_second_one_does_not_disturb_that():
    signals = Signals()
    with pytest.raises(StoppedError, match="stopped by SIGUSR2 at its start: nothing is lost") as stopped:
        signal.raise_signal(signal.SIGUSR2)
    assert not stopped.value.shared  # the other ranks may have had none
    signal.raise_signal(signal.SIGTERM)
    assert signals.received == signal.SIGUSR2


def test_what_takes_any_exception_for_a_failure_of_its_own_lets_a_signal_pass():
    """As torch's compiler does, and as what reads a damaged file must."""

    def compiled():
        try:
            signal.raise_signal(signal.SIGTERM)
        except Exception as error:
            raise UsageError(f"the network cannot be compiled here (InductorError: {error})") from error

    Signals()
    with pytest.raises(StoppedError, match="stopped by SIGTERM at its start"):
        compiled()


def test_what_nohup_has_a_run_ignore_stays_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signals = Signals()
    signal.raise_signal(signal.SIGHUP)
    assert signals.received == 0
