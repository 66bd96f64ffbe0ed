"""A study on a virtual clock: what a strategy would do on a cluster that nobody has paid for yet."""

from tuner.simulation.faults import Faults
from tuner.simulation.result import Simulation
from tuner.simulation.script import Curve, Script
from tuner.simulation.simulation import play, simulate

__all__ = ["Curve", "Faults", "Script", "Simulation", "play", "simulate"]
