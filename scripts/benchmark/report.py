"""What was measured, as a table and as JSON. A ratio above 1 means: faster than what it is compared with."""
import json, os, platform, statistics

LOCAL, BOUND, PASSTHROUGH = "local", "bound", "passthrough"


class Figures:
    """Seconds per call, by workload and step, by place, by round."""

    def __init__(self, places):
        self.places, self.steps = places, {}

    def add(self, number, workload, place, found):
        for step, seconds in found.items():
            self.steps.setdefault((workload, step), {}).setdefault(place.name, {})[number] = seconds

    def table(self):
        names = [place.name for place in self.places]
        against = [(name, LOCAL) for name in names if name != LOCAL] + [(name, BOUND) for name in names if name not in (LOCAL, BOUND)]
        rows = [["workload", *names, *(f"{name} to {other}" for name, other in against)]]
        for (workload, step), by_place in self.steps.items():
            medians = [span(statistics.median(by_place[name].values())) if name in by_place else "" for name in names]
            ratios = [shown(ratio(by_place, name, other)) for name, other in against]
            rows.append([f"{workload}: {step}", *medians, *ratios])
        widths = [max(map(len, column)) for column in zip(*rows)]
        lines = [[cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths))] for row in rows]
        rule = ["-" * width if i == 0 else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
        return "\n".join("| " + " | ".join(cells) + " |" for cells in [lines[0], rule, *lines[1:]])

    def notes(self):
        """What cold has meant on each place."""
        return "\n".join(f"cold, {place.name}: {place.cold}" for place in self.places)

    def write(self, path, options):
        steps = [
            {"workload": workload, "step": step, "seconds_per_call": {name: list(rounds.values()) for name, rounds in by_place.items()},
             "median": {name: statistics.median(rounds.values()) for name, rounds in by_place.items()},
             "ratio_to_local": ratios(by_place, LOCAL), "ratio_to_bound": ratios(by_place, BOUND)}
            for (workload, step), by_place in self.steps.items()]
        machine = {"processors": os.cpu_count(), "kernel": platform.release(), "architecture": platform.machine()}
        cold = {place.name: place.cold for place in self.places}
        with open(path, "w") as f:
            json.dump({"options": options, "machine": machine, "cold": cold, "steps": steps}, f, indent=1)
            f.write("\n")


def ratio(by_place, name, other):
    """Median, lowest and highest of the ratios round by round; `None` where no round has both."""
    own, theirs = by_place.get(name, {}), by_place.get(other, {})
    found = [theirs[number] / own[number] for number in own if number in theirs]
    if name == other or not found:
        return None
    return {"median": statistics.median(found), "low": min(found), "high": max(found)}


def ratios(by_place, other):
    found = {name: ratio(by_place, name, other) for name in by_place}
    return {name: value for name, value in found.items() if value}


def shown(ratio):
    return "{median} ({low}-{high})".format(**{name: short(value) for name, value in ratio.items()}) if ratio else ""


def short(ratio):
    return f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.2g}"


def span(seconds):
    """With three digits that count, in the unit that suits."""
    for unit, scale in (("s", 1), ("ms", 1e3), ("µs", 1e6)):
        if seconds * scale >= 1:
            break
    return f"{seconds * scale:#.3g}".rstrip(".") + f" {unit}"
