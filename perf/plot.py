"""Plots as SVG, drawn by hand: bars for perf/compare, flame graphs for perf/profile."""

from html import escape

FONT = 'font-family="Helvetica, Arial, sans-serif"'
OWN, OWN_LIGHT = "#1b6ca8", "#a9cce3"
PEER, PEER_LIGHT = "#6b6b6b", "#d0d0d0"
LABEL, VALUE, WIDTH, ROW, TOP = 150, 190, 960, 46, 110


def text(x, y, content, size=12, anchor="start", colour="#222", weight="normal"):
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" {FONT} font-size="{size}" text-anchor="{anchor}" fill="{colour}" '
        f'font-weight="{weight}">{escape(content)}</text>'
    )


def rectangle(x, y, width, height, colour, more=""):
    return f'<rect x="{x:.2f}" y="{y:.1f}" width="{max(width, 0):.2f}" height="{height}" fill="{colour}" {more}/>'


def document(width, height, parts):
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
    return "\n".join([head, rectangle(0, 0, width, height, "#ffffff"), *parts, "</svg>"]) + "\n"


def step(largest):
    """A round distance between ticks that gives four to ten of them."""
    for exponent in range(-3, 13):
        for digit in (1, 2, 5):
            if largest <= 8 * digit * 10**exponent:
                return digit * 10**exponent
    return largest


def bars(rows, title, where):
    """CPU per packet of the process and of the machine, one above the other, on one axis that begins at 0."""
    rows = sorted(rows, key=lambda row: row["process_ns"] if row["lost"] is not None else -1)
    largest = max([1.0] + [max(row["process_ns"], row["machine_ns"] or 0) for row in rows])
    room = WIDTH - LABEL - VALUE
    scale = room / largest
    bottom = TOP + ROW * len(rows)
    parts = [text(16, 28, "CPU nanoseconds per packet", 18, weight="bold"), text(16, 50, title, 13), text(16, 68, where, 11, colour="#666")]
    parts += legend(88)
    parts += axis(largest, scale, bottom)
    for index, row in enumerate(rows):
        parts += bar(row, TOP + ROW * index, scale)
    return document(WIDTH, bottom + 44, parts)


def legend(y):
    entries = [(OWN, "process"), (OWN_LIGHT, "whole machine above idle, the generator included"), (PEER, "process, peers")]
    parts, x = [], LABEL
    for colour, name in entries:
        parts += [rectangle(x, y - 10, 12, 12, colour), text(x + 18, y, name, 11)]
        x += 40 + 6.2 * len(name)
    return parts


def axis(largest, scale, bottom):
    parts, value, distance = [], 0.0, step(largest)
    while value <= largest:
        x = LABEL + value * scale
        parts.append(f'<line x1="{x:.1f}" y1="{TOP - 6}" x2="{x:.1f}" y2="{bottom}" stroke="#e4e4e4"/>')
        parts.append(text(x, bottom + 16, f"{value:,.0f}", 11, "middle", "#666"))
        value += distance
    parts.append(f'<line x1="{LABEL}" y1="{TOP - 6}" x2="{LABEL}" y2="{bottom}" stroke="#222"/>')
    return [*parts, text(LABEL, bottom + 34, "ns of CPU per packet; shorter is better", 11, colour="#666")]


def bar(row, y, scale):
    own = row["name"].startswith("sipreel")
    dark, light = (OWN, OWN_LIGHT) if own else (PEER, PEER_LIGHT)
    process, machine = row["process_ns"], row["machine_ns"] or 0
    shown = [text(LABEL - 8, y + 18, row["name"], 12, "end", weight="bold" if own else "normal")]
    if row["lost"] is None:
        shown += [rectangle(LABEL, y + 8, machine * scale, 22, light)]
        known = f"{machine:,.0f}" if machine else "not known"
        return [*shown, text(LABEL + machine * scale + 6, y + 23, f"{known} (machine, nobody receives)", 11)]
    shown += [rectangle(LABEL, y + 4, process * scale, 18, dark), rectangle(LABEL, y + 22, machine * scale, 12, light)]
    shown += [text(LABEL + process * scale + 6, y + 18, f"{process:,.0f}", 12, weight="bold")]
    if machine:
        shown += [text(LABEL + machine * scale + 6, y + 32, f"{machine:,.0f}", 10, colour="#666")]
    lost, share = row["lost"], row["lost"] / max(row["sent"], 1)
    verdict = "nothing lost" if lost == 0 else f"{lost:,} lost ({share:.2%})"
    verdict += "" if row["counted"] == "files" else ", no files"
    return [*shown, text(WIDTH - 12, y + 18, verdict, 12, "end", "#1e7d34" if lost == 0 else "#b3261e")]


# ---- flame graphs ----------------------------------------------------------------------------------------------------

FRAME, FLAME_WIDTH, FLAME_TOP = 17, 1200, 64
KERNEL, USER, THREAD = ("#f2a65a", "#ee8a3c", "#f6be85"), ("#7fb3d5", "#5d9cc6", "#a3c9e2"), ("#c9c9c9",)


def tree(stacks):
    """Folded stacks as a tree: a node is its weight and its children by frame."""
    root = [0, {}]
    for frames, weight in stacks.items():
        root[0] += weight
        node = root
        for frame in frames:
            node = node[1].setdefault(frame, [0, {}])
            node[0] += weight
    return root


def depth(node, smallest):
    below = [depth(child, smallest) for child in node[1].values() if child[0] >= smallest]
    return 1 + max(below, default=0)


def flame(stacks, title, where, unit):
    """Each frame is as wide as its share of all weight; what it calls stands above it. Frames of less than a thousandth are left out.
    `stacks`: tuples of frames, outermost first, with the kernel's marked by `_[k]`, and their weights in `unit`."""
    root = tree(stacks)
    if root[0] == 0:
        raise ValueError("no samples")
    smallest = root[0] / 1000
    levels = depth(root, smallest)
    bottom = FLAME_TOP + FRAME * levels
    parts = [text(12, 24, title, 16, weight="bold"), text(12, 44, where, 11, colour="#666")]
    frames(parts, "all", root, 0.0, bottom - FRAME, root[0], smallest, unit)
    parts.append(text(12, bottom + 18, "blue: user, orange: kernel; hold the pointer over a frame for its share", 11, colour="#666"))
    return document(FLAME_WIDTH, bottom + 30, parts)


def frames(parts, name, node, x, y, total, smallest, unit):
    width = node[0] / total * (FLAME_WIDTH - 24)
    parts.append(frame(name, 12 + x, y, width, f"{node[0]:,.0f} {unit}, {node[0] / total:.1%}"))
    # The widest first would be a lie about order too: frames of a flame graph have none. By name they can be found.
    for below, child in sorted(node[1].items()):
        if child[0] >= smallest:
            frames(parts, below, child, x, y - FRAME, total, smallest, unit)
        x += child[0] / total * (FLAME_WIDTH - 24)


def frame(name, x, y, width, share):
    kernel = name.endswith("_[k]")
    shown = name.removesuffix("_[k]")
    colours = THREAD if name == "all" or name.startswith("thread ") else KERNEL if kernel else USER
    colour = colours[sum(map(ord, name)) % len(colours)]
    fits = int((width - 6) / 6.1)
    label = shown if len(shown) <= fits else shown[: fits - 1] + "…" if fits >= 4 else ""
    box = rectangle(x, y, width, FRAME - 1, colour, 'rx="1"')
    return f"<g><title>{escape(shown)}: {share}</title>{box}{text(x + 3, y + 12, label, 11) if label else ''}</g>"
