"""
What the boards that edgetune is for are like: cores, memory, watts, heat, and which sensors they have.

Watts are of the whole board, at rest and with all cores busy; a trainer on a Jetson's GPU may draw others. The thermal
resistances are chosen so that the temperatures which the board is known for come out at 25 degrees of air; a case, a fan
or a heatsink changes them more than the board does. Where the figures come from is in `sources`.
"""

from __future__ import annotations

from dataclasses import dataclass

_PI_HEAT = (
    "raspberrypi.com documentation, frequency management and thermal control: clocks fall from 80 C on, 85 C is held"
)
_NV_HEAT = "NVIDIA Jetson Linux developer guide, platform power and performance: software throttling"
_INA = "hwmon ina3221, the whole board's rail"
_ZONE = "thermal_zone0"


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardFacts:
    """One board, with the cooling that it is sold or mostly used with."""

    name: str  # the word on the command line
    title: str
    cores: int
    memory_mib: float  # that the kernel hands out
    at_rest_mib: float  # taken by the system and edgetune's service
    idle_w: float
    busy_w: float
    air_resistance_c_per_w: float  # from the board to the air, per watt of the whole board
    air_time_constant_s: float
    chip_resistance_c_per_w: float  # from the chip to the board
    chip_time_constant_s: float
    trip_c: float  # from here on the firmware lowers the clocks
    trip_band_c: float = 5.0  # and holds them at their lowest this far above it
    clock_min_share: float = 0.4  # of the full clock
    temp_sensor: str = _ZONE
    temp_resolution_c: float = 0.5
    temp_noise_c: float = 0.3
    power_sensor: str | None = None  # None: this board cannot measure its power
    power_resolution_w: float = 0.04
    power_noise_w: float = 0.08
    sensor_lag_s: float = 1.0
    trains_gmac_per_s: float  # thousand million multiply-adds a second, all cores at full clock: an order of magnitude
    cooling: str = "bare"
    sources: tuple[str, ...] = ()


_ALL = (
    BoardFacts(
        name="pi3", title="Raspberry Pi 3 Model B", cores=4, memory_mib=906.0, at_rest_mib=280.0, idle_w=1.4, busy_w=3.7,
        air_resistance_c_per_w=11.0, air_time_constant_s=240.0, chip_resistance_c_per_w=3.0, chip_time_constant_s=5.0,
        trip_c=80.0, temp_resolution_c=0.538, trains_gmac_per_s=1.5,
        sources=("pidramble.com, power consumption: 1.4 W at rest, 3.7 W with four cores busy", _PI_HEAT),
    ),
    BoardFacts(
        name="pi4", title="Raspberry Pi 4 Model B 4 GB", cores=4, memory_mib=3792.0, at_rest_mib=450.0, idle_w=2.7,
        busy_w=6.4, air_resistance_c_per_w=7.0, air_time_constant_s=220.0, chip_resistance_c_per_w=2.0,
        chip_time_constant_s=5.0, trip_c=80.0, temp_resolution_c=0.487, trains_gmac_per_s=5.0,
        sources=("pidramble.com, power consumption: 2.7 W at rest, 6.4 W with four cores busy", _PI_HEAT),
    ),
    BoardFacts(
        name="pi5", title="Raspberry Pi 5 8 GB", cores=4, memory_mib=8063.0, at_rest_mib=600.0, idle_w=3.0, busy_w=7.5,
        air_resistance_c_per_w=6.5, air_time_constant_s=200.0, chip_resistance_c_per_w=1.8, chip_time_constant_s=4.0,
        trip_c=80.0, temp_resolution_c=0.55, trains_gmac_per_s=15.0, power_sensor="vcgencmd pmic_read_adc",
        power_resolution_w=0.01, power_noise_w=0.15,
        sources=(
            "raspberrypi.com, Heating and cooling Raspberry Pi 5: uncooled, a busy board reaches its limit in minutes",
            "measured by several with USB meters: 2.7 to 3.3 W at rest, 6.8 to 8 W with four cores busy",
            _PI_HEAT,
        ),
    ),
    BoardFacts(
        name="nano", title="NVIDIA Jetson Nano developer kit", cores=4, memory_mib=3956.0, at_rest_mib=700.0, idle_w=2.0,
        busy_w=6.5, air_resistance_c_per_w=4.2, air_time_constant_s=500.0, chip_resistance_c_per_w=1.0,
        chip_time_constant_s=3.0, trip_c=97.0, power_sensor=_INA, trains_gmac_per_s=4.0, cooling="its heatsink, no fan",
        sources=("NVIDIA: modes of 5 W and 10 W for the module", f"{_NV_HEAT}, 97 C"),
    ),
    BoardFacts(
        name="tx2", title="NVIDIA Jetson TX2 developer kit", cores=6, memory_mib=7859.0, at_rest_mib=900.0, idle_w=3.5,
        busy_w=10.0, air_resistance_c_per_w=2.6, air_time_constant_s=400.0, chip_resistance_c_per_w=0.8,
        chip_time_constant_s=3.0, trip_c=95.5, power_sensor=_INA, trains_gmac_per_s=8.0, cooling="heatsink and fan",
        sources=("NVIDIA: modes of 7.5 W and 15 W for the module", f"{_NV_HEAT}, 95.5 C"),
    ),
    BoardFacts(
        name="xavier-nx", title="NVIDIA Jetson Xavier NX developer kit", cores=6, memory_mib=7765.0, at_rest_mib=1000.0,
        idle_w=4.0, busy_w=12.0, air_resistance_c_per_w=2.6, air_time_constant_s=400.0, chip_resistance_c_per_w=0.7,
        chip_time_constant_s=3.0, trip_c=90.5, power_sensor=_INA, trains_gmac_per_s=12.0, cooling="heatsink and fan",
        sources=("NVIDIA: modes of 10 W and 15 W for the module", f"{_NV_HEAT}, 90.5 C"),
    ),
    BoardFacts(
        name="orin-nano", title="NVIDIA Jetson Orin Nano developer kit", cores=6, memory_mib=7620.0, at_rest_mib=1100.0,
        idle_w=5.0, busy_w=11.0, air_resistance_c_per_w=2.4, air_time_constant_s=400.0, chip_resistance_c_per_w=0.6,
        chip_time_constant_s=3.0, trip_c=99.0, temp_resolution_c=0.031, temp_noise_c=0.1, power_sensor=_INA,
        trains_gmac_per_s=20.0, cooling="heatsink and fan",
        sources=("NVIDIA: modes of 7 W and 15 W for the module", f"{_NV_HEAT}, 99 C"),
    ),
    BoardFacts(
        name="agx-orin", title="NVIDIA Jetson AGX Orin developer kit", cores=12, memory_mib=30536.0, at_rest_mib=1500.0,
        idle_w=9.0, busy_w=28.0, air_resistance_c_per_w=1.1, air_time_constant_s=500.0, chip_resistance_c_per_w=0.3,
        chip_time_constant_s=3.0, trip_c=99.0, temp_resolution_c=0.031, temp_noise_c=0.1, power_sensor=_INA,
        trains_gmac_per_s=45.0, cooling="heatsink and fan",
        sources=("NVIDIA: modes of 15 W to 50 W for the module", f"{_NV_HEAT}, 99 C"),
    ),
)  # fmt: skip

BOARDS = {facts.name: facts for facts in _ALL}
