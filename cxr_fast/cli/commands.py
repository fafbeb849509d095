"""How commands are declared: examples in their help, what holds for all, what to do after Ctrl-C.

click parses and completes; this arranges what ``--help`` shows, and how a command ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import click

from cxr_fast.cli.endings import Refused, Stopped, sentence_of, signals, stdout_is_closed

# Where ctx.meta, which all contexts of a call share, says what was asked of the call as a whole.
_DEBUG, QUIET = "cxr_fast.debug", "cxr_fast.quiet"
_HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def _flag(key: str, *names: str, text: str) -> click.Option:
    def remember(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        ctx.meta[key] = ctx.meta.get(key, False) or value

    return click.Option(names, is_flag=True, expose_value=False, callback=remember, help=text)


class Command(click.Command):
    """A command whose help ends in ``examples``; ``resume`` says how it goes on after a stop."""

    def __init__(
        self, *args: Any, examples: Sequence[str] = (), resume: str = "", **settings: Any
    ) -> None:
        super().__init__(*args, **{"context_settings": dict(_HELP), **settings})
        self.examples = examples
        self.resume = resume
        self.params += [
            _flag(QUIET, "-q", "--quiet", text="No progress and no notes: the result, and errors."),
            _flag(_DEBUG, "--debug", text="Show tracebacks of errors."),
        ]

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Arguments first, then the options that must be given."""
        params = self.get_params(ctx)
        pieces = [piece for param in params for piece in param.get_usage_pieces(ctx)]
        needed = [p for p in params if isinstance(p, click.Option) and p.required]
        pieces += [f"{param.opts[0]} {param.make_metavar(ctx)}" for param in needed]
        return [*pieces, self.options_metavar or ""]

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The examples, as they are typed."""
        if self.examples:
            with formatter.section("Examples"):
                for example in self.examples:
                    formatter.write(f"{'':{formatter.current_indent}}{example}\n")

    def invoke(self, ctx: click.Context) -> Any:
        """As click does; a stop learns how this command goes on."""
        try:
            return super().invoke(ctx)
        except Stopped as stopped:
            stopped.resume = stopped.resume or self.resume
            raise


class SubGroup(Command, click.Group):
    """A command with commands of its own."""

    command_class = Command

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """As of a command, and then the commands of its own."""
        return [*super().collect_usage_pieces(ctx), self.subcommand_metavar]


class Group(click.Group):
    """The command ``cxr-fast``: commands under headings, errors in sentences, signals in order."""

    def __init__(
        self, *args: Any, sections: dict[str, Sequence[click.Command]], **settings: Any
    ) -> None:
        super().__init__(*args, **{"context_settings": dict(_HELP), **settings})
        self.params.append(_flag(_DEBUG, "--debug", text="Show tracebacks of errors."))
        self.sections = sections
        for commands in sections.values():
            for command in commands:
                self.add_command(command)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Under their headings, in the order in which one meets them."""
        longest = max(map(len, self.commands))
        for title, commands in self.sections.items():
            with formatter.section(title):
                rows = [(f"{c.name:<{longest}}", c.get_short_help_str(75)) for c in commands]
                formatter.write_dl(rows)

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Run, and end with one of ``endings.EXIT_CODES``."""
        run: Any = super().main
        if not standalone_mode:
            return run(*args, standalone_mode=False, **extra)
        with signals() as interrupts:
            try:
                return run(*args, **{"obj": interrupts, **extra})
            except Stopped as stopped:
                click.echo(stopped.sentence, err=True)
                raise SystemExit(stopped.exit_code) from None

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        """As click does; ``--help`` and ``--version`` are printed here, where a disk may be full."""
        try:
            return super().make_context(*args, **extra)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise Refused(sentence_of(error)) from error

    def invoke(self, ctx: click.Context) -> Any:
        """Errors that a person can mend become a sentence and exit code 1."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            if ctx.meta.get(_DEBUG) or (isinstance(error, BrokenPipeError) and stdout_is_closed()):
                raise  # of a pipe: the reader has what it wanted, and click ends in silence
            raise Refused(sentence_of(error, _options_of(ctx))) from error


def _options_of(ctx: click.Context) -> frozenset[str]:
    """What the command that was called could have been told."""
    group = cast(click.Group, ctx.command)
    command = group.commands.get(ctx.invoked_subcommand or "")
    return (
        frozenset(name for param in command.params for name in param.opts) if command else frozenset()
    )
