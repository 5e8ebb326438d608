"""
Trees of /sys, /proc and /etc of boards, cut down to the files that matter, and what their commands print.

No board of these is at hand: names, units and layout are those of public sources, said beside each; values are of the same
sources or of that size.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path


def zones(**degrees: int) -> dict[str, str]:
    """Thermal zones with their types and thousandths of a degree."""
    files: dict[str, str] = {}
    for number, (name, value) in enumerate(degrees.items()):
        files[f"sys/class/thermal/thermal_zone{number}/type"] = name.replace("__", "-")
        files[f"sys/class/thermal/thermal_zone{number}/temp"] = str(value)
    return files


def ina3221(number: int, *rails: tuple[str, int, int], shunt_uohm: int = 5000) -> dict[str, str]:
    """
    An INA3221 under hwmon, with label, millivolts and milliamperes of up to three channels.

    All that the driver shows: in4 to in6 are shunt voltages in microvolts, in7 and curr4 the sums
    (Documentation/hwmon/ina3221.rst).
    """
    chip = f"sys/class/hwmon/hwmon{number}"
    files = {f"{chip}/name": "ina3221", f"{chip}/in7_label": "sum of shunt voltages"}
    for channel, (label, millivolts, milliamperes) in enumerate(rails, 1):
        files |= {
            f"{chip}/in{channel}_label": label, f"{chip}/in{channel}_input": str(millivolts),
            f"{chip}/in{channel}_enable": "1", f"{chip}/curr{channel}_input": str(milliamperes),
            f"{chip}/shunt{channel}_resistor": str(shunt_uohm),
            f"{chip}/in{channel + 3}_input": str(milliamperes * shunt_uohm // 1000),
        }  # fmt: skip
    total_ma = sum(milliamperes for _, _, milliamperes in rails)
    return files | {f"{chip}/in7_input": str(total_ma * shunt_uohm // 1000), f"{chip}/curr4_input": str(total_ma)}


def ina3221x(place: str, **milliwatts: int) -> dict[str, str]:
    """An INA3221 under iio, as JetPack 4 has it: milliwatts, millivolts and milliamperes a channel."""
    chip = f"sys/bus/i2c/drivers/ina3221x/{place}"
    files = {}
    for channel, (label, power_mw) in enumerate(milliwatts.items()):
        files |= {
            f"{chip}/rail_name_{channel}": label, f"{chip}/in_power{channel}_input": str(power_mw),
            f"{chip}/in_voltage{channel}_input": "5000", f"{chip}/in_current{channel}_input": str(power_mw // 5),
        }  # fmt: skip
    return files


def cooling(*devices: tuple[str, int, int]) -> dict[str, str]:
    """Cooling devices with their present and highest state."""
    files = {}
    for number, (name, state, highest) in enumerate(devices):
        device = f"sys/class/thermal/cooling_device{number}"
        files |= {f"{device}/type": name, f"{device}/cur_state": str(state), f"{device}/max_state": str(highest)}
    return files


def release(l4t: str, model: str) -> dict[str, str]:
    """What a Jetson says of itself."""
    major, _, revision = l4t.partition(".")
    return {
        "proc/device-tree/model": f"{model}\0",
        "etc/nv_tegra_release": f"# R{major} (release), REVISION: {revision}, GCID: 1, BOARD: generic, EABI: aarch64",
    }


def nvpmodel(chosen: int, *names: str) -> dict[str, str]:
    """/etc/nvpmodel.conf with its modes, and the file in which the tool keeps the one that was chosen."""
    modes = "\n\n".join(
        f"< POWER_MODEL ID={number} NAME={name} >\nCPU_ONLINE CORE_0 1" for number, name in enumerate(names)
    )
    return {
        "etc/nvpmodel.conf": f"# a comment: < POWER_MODEL ID=id_num NAME=mode_name >\n{modes}\n< PM_CONFIG DEFAULT=0 >",
        "var/lib/nvpmodel/status": f"pmode:{chosen:04}",
    }


# L4T 32 developer guide, "Power Management for Jetson Nano": rails; the PMIC's zone says 100 or 50 for ever.
NANO = {
    **zones(AO__therm=44500, CPU__therm=36500, GPU__therm=35000, PLL__therm=34500, PMIC__Die=100000, thermal__fan__est=35750),
    **ina3221x("6-0040/iio:device0", POM_5V_IN=2104, POM_5V_GPU=41, POM_5V_CPU=451),
    **cooling(("thermal-cpufreq-0", 0, 14), ("pwm-fan", 1, 3), ("cpu-throttle-alert", 0, 1)),
    **release("32.7.1", "NVIDIA Jetson Nano Developer Kit"), **nvpmodel(1, "MAXN", "5W"),
}  # fmt: skip

# L4T 32 developer guide, "Power Management for Jetson TX2": 0x40 and 0x41 are on the module; tegrastats prints these rails.
TX2 = {
    **zones(BCPU__therm=42500, MCPU__therm=42500, GPU__therm=39500, PLL__therm=42500, Tboard_tegra=38000, Tdiode_tegra=39250,
            PMIC__Die=100000, thermal__fan__est=41300),
    **ina3221x("0-0040/iio:device0", VDD_SYS_GPU=182, VDD_SYS_SOC=730, VDD_4V0_WIFI=0),
    **ina3221x("0-0041/iio:device1", VDD_IN=5297, VDD_SYS_CPU=1917, VDD_SYS_DDR=1241),
    **release("32.7.4", "quill"), **nvpmodel(3, "MAXN", "MAXQ", "MAXP_CORE_ALL", "MAXP_CORE_ARM"),
}  # fmt: skip

# L4T 35 developer guide, "Jetson Xavier NX Series": rails; VDD_IN is the whole module (NVIDIA's forum, topic 200883).
XAVIER_NX = {
    **zones(AO__therm=36000, AUX__therm=36500, CPU__therm=37500, GPU__therm=36000, PMIC__Die=50000),
    **ina3221(4, ("VDD_IN", 5080, 936), ("VDD_CPU_GPU_CV", 5080, 176), ("VDD_SOC", 5080, 248)),
    **release("35.4.1", "NVIDIA Jetson Xavier NX Developer Kit"), **nvpmodel(8, *(f"MODE_{n}" for n in range(8)), "MODE_20W_6CORE"),
}  # fmt: skip

# L4T 36 developer guide, "Jetson Orin Nano Series": rails, over-current counters; arch/arm64/boot/dts/nvidia/tegra234-p3767.dtsi:
# shunts of 5 milliohms.
ORIN_NANO = {
    **zones(cpu__thermal=48687, gpu__thermal=49093, cv0__thermal=-256000, soc0__thermal=47218, tj__thermal=49312, PMIC__Die=100000),
    "sys/class/hwmon/hwmon0/name": "pwmfan",
    **ina3221(1, ("VDD_IN", 5040, 952), ("VDD_CPU_GPU_CV", 5040, 104), ("VDD_SOC", 5040, 264)),
    "sys/class/hwmon/hwmon3/name": "soctherm_oc",
    **{f"sys/class/hwmon/hwmon3/oc{n}_event_cnt": count for n, count in ((1, "0"), (2, "15"), (3, "37"))},
    **{f"sys/class/hwmon/hwmon3/oc{n}_throt_en": "1" for n in (1, 2, 3)},
    **cooling(("cpufreq-cpu0", 0, 24), ("pwm-fan", 2, 4), ("cpu-throttle-alert", 0, 2), ("hot-surface-alert", 1, 2)),
    "sys/class/power_supply/ucsi-source-psy-1-00081/type": "USB",
    "sys/class/power_supply/ucsi-source-psy-1-00081/online": "0",
    **release("36.4.3", "NVIDIA Jetson Orin Nano Developer Kit"), **nvpmodel(1, "15W", "25W", "MAXN_SUPER"),
}  # fmt: skip

# arch/arm64/boot/dts/nvidia/tegra234-p3701.dtsi: two monitors, no rail of the whole, shunts of 2 milliohms; on L4T 35 the unused
# channels are labelled NC. Milliwatts as tegrastats prints them on such a board.
AGX_ORIN = {
    **zones(CPU__therm=77281, GPU__therm=69125, tj__therm=77281, Tboard_tegra=62000),
    **ina3221(3, ("VDD_GPU_SOC", 20000, 157), ("VDD_CPU_CV", 20000, 715), ("VIN_SYS_5V0", 4968, 1000), shunt_uohm=2000),
    **ina3221(4, ("NC", 99, 9_999_999), ("VDDQ_VDD2_1V8AO", 4968, 220), ("NC", 0, 0), shunt_uohm=2000),
    **release("35.4.1", "Jetson AGX Orin Developer Kit"), **nvpmodel(0, "MAXN", "MODE_15W", "MODE_30W", "MODE_50W"),
}  # fmt: skip

# L4T 38 developer guide, "Jetson Thor": INA3221 of the module, INA238 of the carrier board's input; in4 to in7 are no rails.
THOR = {
    **zones(cpu__thermal=38000, tj__thermal=38500, soc012__thermal=37000, soc345__thermal=37500),
    **ina3221(5, ("VDD_GPU", 12040, 640), ("VDD_CPU_SOC_MSS", 12040, 960), ("VIN_SYS_5V0", 5088, 1740)),
    "sys/class/hwmon/hwmon2/name": "ina238", "sys/class/hwmon/hwmon2/power1_input": "31250000",
    "sys/class/hwmon/hwmon2/in0_input": "3", "sys/class/hwmon/hwmon2/in1_input": "19000",
    "sys/class/hwmon/hwmon2/curr1_input": "1644", "sys/class/hwmon/hwmon2/temp1_input": "41000",
    **cooling(*((f"cpufreq-cpu{n}", 0, 48) for n in range(2)), ("gpu-throttle-alert", 0, 2), ("devfreq-gpu-gpc-0", 0, 169)),
    **release("38.2.0", "NVIDIA Jetson AGX Thor Developer Kit"), **nvpmodel(0, "MAXN", "120W"),
}  # fmt: skip

# drivers/hwmon/raspberrypi-hwmon.c and the get_throttled file of Raspberry Pi OS' kernels (hexadecimal without 0x).
PI_4 = {
    **zones(cpu__thermal=46738),
    "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0",
    "sys/class/hwmon/hwmon1/name": "rpi_volt", "sys/class/hwmon/hwmon1/in0_lcrit_alarm": "0",
    "sys/devices/platform/soc/soc:firmware/get_throttled": "50000",
}  # fmt: skip

# A Pi 5 has no get_throttled file: its firmware node is soc@107c000000:firmware, and its kernel left the file out.
PI_5 = {
    **zones(cpu__thermal=52100),
    "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
    "proc/meminfo": "MemTotal:        8256912 kB\nMemFree: 100 kB\n",
    "etc/os-release": 'NAME="Debian GNU/Linux"\nPRETTY_NAME="Debian GNU/Linux 13 (trixie)"\n',
    "sys/class/hwmon/hwmon0/name": "cpu_thermal", "sys/class/hwmon/hwmon1/name": "rp1_adc",
    "sys/class/hwmon/hwmon1/in1_input": "1416", "sys/class/hwmon/hwmon2/name": "rpi_volt",
    "sys/class/hwmon/hwmon2/in0_lcrit_alarm": "0",
    **cooling(("pwm-fan", 1, 4)),
}  # fmt: skip

# `vcgencmd pmic_read_adc` of a Pi 5 under load, as github.com/jfikar/RPi5-power prints it: amperes, volts, and two without amperes.
PMIC = """\
 3V7_WL_SW_A current(0)=0.00000000A
   3V3_SYS_A current(1)=0.06245952A
   1V8_SYS_A current(2)=0.16102850A
  DDR_VDD2_A current(3)=0.00780744A
  DDR_VDDQ_A current(4)=0.00000000A
   1V1_SYS_A current(5)=0.17566740A
    0V8_SW_A current(6)=0.32791250A
  VDD_CORE_A current(7)=10.87674000A
   3V3_DAC_A current(17)=0.00036630A
   3V3_ADC_A current(18)=0.00042735A
   0V8_AON_A current(16)=0.00579975A
      HDMI_A current(22)=0.01367520A
 3V7_WL_SW_V volt(8)=3.79999600V
   3V3_SYS_V volt(9)=3.30632200V
   1V8_SYS_V volt(10)=1.79828900V
  DDR_VDD2_V volt(11)=1.10292900V
  DDR_VDDQ_V volt(12)=0.60476130V
   1V1_SYS_V volt(13)=1.10439400V
    0V8_SW_V volt(14)=0.80256330V
  VDD_CORE_V volt(15)=0.89745940V
   3V3_DAC_V volt(20)=3.30494200V
   3V3_ADC_V volt(21)=3.30219400V
   0V8_AON_V volt(19)=0.79736190V
      HDMI_V volt(23)=5.07056000V
     EXT5V_V volt(24)=5.06788000V
      BATT_V volt(25)=3.01110800V
"""
PMIC_W = 10.800  # of the lines above, added up by hand

# What the command says on a Pi 4, and to somebody outside the group video (raspberrypi/utils, vcgencmd.c).
NO_PMIC = 'vc_gencmd_read_response returned -1\nerror=1 error_msg="Command not registered"'
NOT_IN_VIDEO = "Can't open device file: /dev/vcio\nTry creating a device file with: sudo mknod /dev/vcio c 100 0"

# A UPS HAT whose fuel gauge and charger have kernel drivers: Documentation/ABI/testing/sysfs-class-power.
UPS_HAT = {
    **PI_4,
    "sys/class/power_supply/bq27411-0/type": "Battery", "sys/class/power_supply/bq27411-0/present": "1",
    "sys/class/power_supply/bq27411-0/status": "Discharging", "sys/class/power_supply/bq27411-0/capacity": "63",
    "sys/class/power_supply/bq27411-0/voltage_now": "3810000", "sys/class/power_supply/bq27411-0/current_now": "-1240000",
    "sys/class/power_supply/hidpp_battery_0/type": "Battery", "sys/class/power_supply/hidpp_battery_0/scope": "Device",
    "sys/class/power_supply/hidpp_battery_0/status": "Discharging", "sys/class/power_supply/hidpp_battery_0/capacity": "5",
}  # fmt: skip

# The same class on a laptop with two batteries.
LAPTOP_ON_BATTERY = {
    "sys/class/hwmon/hwmon0/name": "coretemp", "sys/class/hwmon/hwmon0/temp1_input": "61000",
    "sys/class/hwmon/hwmon0/temp2_input": "63000",
    "sys/class/power_supply/AC/type": "Mains", "sys/class/power_supply/AC/online": "0",
    "sys/class/power_supply/BAT0/type": "Battery", "sys/class/power_supply/BAT0/status": "Discharging",
    "sys/class/power_supply/BAT0/voltage_now": "12000000", "sys/class/power_supply/BAT0/current_now": "-1500000",
    "sys/class/power_supply/BAT0/energy_now": "9000000", "sys/class/power_supply/BAT0/energy_full": "30000000",
    "sys/class/power_supply/BAT0/capacity": "30",
    "sys/class/power_supply/BAT1/type": "Battery", "sys/class/power_supply/BAT1/status": "Not charging",
    "sys/class/power_supply/BAT1/energy_now": "10000000", "sys/class/power_supply/BAT1/energy_full": "10000000",
    "sys/class/power_supply/BAT1/capacity": "100",
}  # fmt: skip

# Documentation/power/powercap/powercap.rst: dram is a domain beside core, and not in the package.
SERVER_WITH_RAPL = {
    "sys/class/powercap/intel-rapl:0/name": "package-0", "sys/class/powercap/intel-rapl:0/energy_uj": "262143000000",
    "sys/class/powercap/intel-rapl:0/max_energy_range_uj": "262143328850",
    "sys/class/powercap/intel-rapl:0:0/name": "core", "sys/class/powercap/intel-rapl:0:0/energy_uj": "5",
    "sys/class/powercap/intel-rapl:0:1/name": "dram", "sys/class/powercap/intel-rapl:0:1/energy_uj": "1000000",
    "sys/class/powercap/intel-rapl:0:1/max_energy_range_uj": "65712999613",
    "sys/class/powercap/intel-rapl:1/name": "package-1", "sys/class/powercap/intel-rapl:1/energy_uj": "1000000",
    "sys/class/powercap/intel-rapl:1/max_energy_range_uj": "262143328850",
    "sys/class/powercap/intel-rapl-mmio:0/name": "package-0", "sys/class/powercap/intel-rapl-mmio:0/energy_uj": "7",
}  # fmt: skip

# Documentation/accounting/psi.rst
PRESSURE = {
    "proc/pressure/memory": "some avg10=12.34 avg60=2.00 avg300=0.50 total=123456\nfull avg10=1.00 avg60=0.20 avg300=0.05 total=1",
    "proc/pressure/cpu": "some avg10=55.00 avg60=0.00 avg300=0.00 total=9\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0",
    "proc/pressure/io": "some avg10=0.00 avg60=0.00 avg300=0.00 total=9\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0",
}  # fmt: skip

# The table of nvmap on L4T 32 to 36, and with the column that some releases have in addition.
NVMAP_CLIENTS = """\
CLIENT                        PROCESS      PID        SIZE
user                       python3.10     4481     118372K
user                      gnome-shell     2831       5384K
user                   nvargus-daemon     1012          0K
total                                              123756K
"""
NVMAP_CLIENTS_WITH_PSS = """\
CLIENT                        PROCESS      PID         PSS        SIZE
user                       python3.10     4481      64000K         2M
total                                                  64K         76K
"""


def plant(root: Path, files: Mapping[str, str]) -> Path:
    """Write a tree below a directory, over what is there."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")
    return root


def as_devices(files: Mapping[str, str]) -> dict[str, str]:
    """The same tree with the places below /sys/devices and /sys/bus too, of which those below /sys/class are links."""
    found = dict(files)
    for name, text in files.items():
        found[name.replace("sys/class/thermal/", "sys/devices/virtual/thermal/")] = text
    chips = {
        match[1]
        for name, text in files.items()
        if text in {"ina3221", "ina238"} and (match := re.search(r"hwmon(\d+)/name", name))
    }
    for address, number in enumerate(sorted(chips), 0x40):
        place, chip = f"sys/bus/i2c/devices/1-{address:04x}", f"sys/class/hwmon/hwmon{number}/"
        found[f"{place}/name"] = files[f"{chip}name"]
        found |= {
            f"{place}/hwmon/hwmon{number}/{name[len(chip) :]}": text
            for name, text in files.items()
            if name.startswith(chip)
        }
    return found
