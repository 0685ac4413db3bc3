"""The commands: vm/run, vm/matrix, vm/fetch, vm/clean and vm/lock."""

from __future__ import annotations

import shutil
import signal
import sys
from pathlib import Path

import click

from vm import cache, initramfs, kernels, rootfs, variants
from vm.errors import Unavailable
from vm.job import Conditions
from vm.machine import boot
from vm.variants import Variant


@click.group()
def main() -> None:
    """nsbuild under other kernels and other policies."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored by a caller, it would leave nothing to wait for


@main.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--kernel", default="6.12", show_default=True, help="One of kernels.toml.")
@click.option("--variant", default="plain", show_default=True, help="One of variants.toml.")
@click.option("--net", is_flag=True, help="Let the VM reach the network, through this host.")
@click.option("--shell", is_flag=True, help="An interactive shell (or CMD) on this terminal.")
@click.option("--results", type=click.Path(path_type=Path), help="A directory for what CMD leaves in $VM_RESULTS.")
@click.option("--timeout", default=1800.0, show_default=True, help="Seconds.")
@click.argument("command", nargs=-1, metavar="CMD...", type=click.UNPROCESSED)
def run(
    kernel: str, variant: str, net: bool, shell: bool, results: Path | None, timeout: float, command: tuple[str, ...]
) -> None:
    """Run CMD in a throw-away VM as its user `builder`, in a copy of this checkout. Exits as CMD does."""
    if not command and not shell:
        raise click.UsageError("say what to run, or --shell")
    words = command or ("bash", "-l")
    ended = boot(kernel, words, _conditions(variant), net=net, shell=shell, timeout=timeout, results=results)
    if ended.status is None:
        raise Unavailable(f"The VM ended before the command did. {ended.why()}")
    sys.exit(ended.status)


def _conditions(name: str) -> Conditions:
    known = variants.load()
    if name not in known:
        raise Unavailable(f"There is no variant {name}.", f"variants.toml has {', '.join(known)}.")
    return known[name][0].conditions


@main.command()
@click.option("--only", "names", multiple=True, metavar="NAME", help="A variant, or NAME@KERNEL; may be repeated.")
@click.option("--junit", type=click.Path(path_type=Path), help="A JUnit file to write.")
@click.option("--timeout", default=1800.0, show_default=True, help="Seconds for each VM.")
@click.option("--list", "listing", is_flag=True, help="Name what would run.")
def matrix(names: tuple[str, ...], junit: Path | None, timeout: float, listing: bool) -> None:
    """Run the variants, one VM after the other, and print a table. Exits with 1 when one was not as expected."""
    chosen = _chosen(names)
    if listing:
        click.echo("\n".join(variant.name for variant in chosen))
        return
    from vm import matrix as running

    verdicts = []
    for number, variant in enumerate(chosen, 1):
        click.echo(f"vm: {number}/{len(chosen)} {variant.name}", err=True)
        verdicts.append(verdict := running.run(variant, timeout))
        click.echo(f"vm: {variant.name} was {verdict.word} after {verdict.seconds:.0f} seconds", err=True)
        for sentence in verdict.wrong:
            click.echo(f"vm: {variant.name}: {sentence}", err=True)
        if junit is not None:
            running.junit(verdicts, junit)
    click.echo(running.table(verdicts), nl=False)
    sys.exit(any(verdict.wrong for verdict in verdicts))


def _chosen(names: tuple[str, ...]) -> list[Variant]:
    every = {variant.name: variant for group in variants.load().values() for variant in group}
    if not names:
        return list(every.values())
    chosen = []
    for name in names:
        matching = [each for each in every.values() if name in (each.name, each.conditions.name)]
        if not matching:
            raise Unavailable(f"There is no variant {name}.", "vm/matrix --list names them.")
        chosen += [each for each in matching if each not in chosen]
    return chosen


@main.command()
@click.argument("names", nargs=-1, metavar="[KERNEL]...")
def fetch(names: tuple[str, ...]) -> None:
    """Get what VMs need, of these kernels or all: then vm/run and vm/matrix need no network."""
    tar, _ = rootfs.get()
    for name in names or kernels.suites():
        initramfs.get(kernels.get(name), tar)


@main.command()
def clean() -> None:
    """Remove the kernels and images that VMs have left in the cache."""
    directory = cache.directory()
    shutil.rmtree(directory)
    click.echo(f"removed {directory}")


@main.command()
def lock() -> None:
    """Write kernels.lock: the kernels that the suites of kernels.toml have now."""
    kernels.lock()
    click.echo(kernels.LOCK.read_text(), nl=False)


if __name__ == "__main__":
    main()
