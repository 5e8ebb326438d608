"""Trees of /sys and /proc as recorded on boards, cut down to the files that matter."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

ORIN_NANO = {
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal", "sys/class/thermal/thermal_zone0/temp": "48687",
    "sys/class/thermal/thermal_zone1/type": "gpu-thermal", "sys/class/thermal/thermal_zone1/temp": "49093",
    "sys/class/thermal/thermal_zone2/type": "cv0-thermal", "sys/class/thermal/thermal_zone2/temp": "-256000",
    "sys/class/thermal/thermal_zone3/type": "soc0-thermal", "sys/class/thermal/thermal_zone3/temp": "47218",
    "sys/class/thermal/thermal_zone4/type": "tj-thermal", "sys/class/thermal/thermal_zone4/temp": "49312",
    "sys/class/thermal/thermal_zone5/type": "PMIC-Die", "sys/class/thermal/thermal_zone5/temp": "100000",
    "sys/class/hwmon/hwmon0/name": "pwmfan",
    "sys/class/hwmon/hwmon1/name": "ina3221",
    "sys/class/hwmon/hwmon1/in1_label": "VDD_IN", "sys/class/hwmon/hwmon1/in1_input": "5040",
    "sys/class/hwmon/hwmon1/curr1_input": "952",
    "sys/class/hwmon/hwmon1/in2_label": "VDD_CPU_GPU_CV", "sys/class/hwmon/hwmon1/in2_input": "5040",
    "sys/class/hwmon/hwmon1/curr2_input": "104",
    "sys/class/hwmon/hwmon1/in3_label": "VDD_SOC", "sys/class/hwmon/hwmon1/in3_input": "5040",
    "sys/class/hwmon/hwmon1/curr3_input": "264",
    "sys/class/hwmon/hwmon1/in7_label": "sum of shunt voltages", "sys/class/hwmon/hwmon1/curr4_input": "1320",
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64",
}  # fmt: skip

AGX_ORIN = {
    "sys/class/thermal/thermal_zone0/type": "CPU-therm", "sys/class/thermal/thermal_zone0/temp": "41500",
    "sys/class/hwmon/hwmon3/name": "ina3221",
    "sys/class/hwmon/hwmon3/in1_label": "VDD_GPU_SOC", "sys/class/hwmon/hwmon3/in1_input": "20000",
    "sys/class/hwmon/hwmon3/curr1_input": "200",
    "sys/class/hwmon/hwmon3/in2_label": "VDD_CPU_CV", "sys/class/hwmon/hwmon3/in2_input": "20000",
    "sys/class/hwmon/hwmon3/curr2_input": "100",
    "sys/class/hwmon/hwmon3/in3_label": "NC", "sys/class/hwmon/hwmon3/in3_input": "99",
    "sys/class/hwmon/hwmon3/curr3_input": "9999999",
    "sys/class/hwmon/hwmon4/name": "ina3221",
    "sys/class/hwmon/hwmon4/in1_label": "VIN_SYS_5V0", "sys/class/hwmon/hwmon4/in1_input": "5000",
    "sys/class/hwmon/hwmon4/curr1_input": "800",
}  # fmt: skip

THOR = {
    "sys/class/thermal/thermal_zone0/type": "tj-thermal", "sys/class/thermal/thermal_zone0/temp": "38000",
    "sys/class/hwmon/hwmon2/name": "ina238",
    "sys/class/hwmon/hwmon2/power1_input": "31250000", "sys/class/hwmon/hwmon2/in1_input": "19000",
    "sys/class/hwmon/hwmon2/curr1_input": "1644",
}  # fmt: skip

PI_5 = {
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal", "sys/class/thermal/thermal_zone0/temp": "52100",
    "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
    "proc/meminfo": "MemTotal:        8256912 kB\nMemFree: 100 kB\n",
    "etc/os-release": 'NAME="Debian GNU/Linux"\nPRETTY_NAME="Debian GNU/Linux 13 (trixie)"\n',
}  # fmt: skip

LAPTOP_ON_BATTERY = {
    "sys/class/hwmon/hwmon0/name": "coretemp", "sys/class/hwmon/hwmon0/temp1_input": "61000",
    "sys/class/hwmon/hwmon0/temp2_input": "63000",
    "sys/class/power_supply/AC/type": "Mains", "sys/class/power_supply/AC/online": "0",
    "sys/class/power_supply/BAT0/type": "Battery", "sys/class/power_supply/BAT0/status": "Discharging",
    "sys/class/power_supply/BAT0/voltage_now": "12000000", "sys/class/power_supply/BAT0/current_now": "-1500000",
}  # fmt: skip

SERVER_WITH_RAPL = {
    "sys/class/powercap/intel-rapl:0/name": "package-0", "sys/class/powercap/intel-rapl:0/energy_uj": "262143000000",
    "sys/class/powercap/intel-rapl:0/max_energy_range_uj": "262143328850",
    "sys/class/powercap/intel-rapl:0:0/name": "core", "sys/class/powercap/intel-rapl:0:0/energy_uj": "5",
    "sys/class/powercap/intel-rapl:1/name": "package-1", "sys/class/powercap/intel-rapl:1/energy_uj": "1000000",
    "sys/class/powercap/intel-rapl:1/max_energy_range_uj": "262143328850",
}  # fmt: skip


def plant(root: Path, files: Mapping[str, str]) -> Path:
    """Write a tree below a directory, over what is there."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")
    return root
