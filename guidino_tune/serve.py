"""The command ``serve``: a page on which a model is tried."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from guidino_tune.cli import add_backbone_option, add_protocol_options, add_trust_option, parser, protocol_values, run

EXAMPLES = """\
  guidino-tune serve ~/guidino_tune/retrained/kvasir-12/model
  guidino-tune serve ~/guidino_tune/studies/demo/trials/00000 --open
  guidino-tune serve MODEL --port 8080 --mirror

Drop an image on the page: mask, probability and guide mask over it, areas, and the mask to take away. From another machine:
ssh -L 7860:localhost:7860 HOST. Nothing is kept. Ctrl-C ends it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and serves; see ``--help``."""
    made = parser("serve", "Try a model on a page in the browser.", EXAMPLES)
    made.add_argument(
        "model", help="model folder of `retrain` or `ensemble`, a trial's folder of a study, or models:/NAME/VERSION in MLflow"
    )
    made.add_argument("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1, for this machine alone)")
    made.add_argument("--port", type=int, help="default: 7860, or a free one where that is taken")
    made.add_argument("--open", action="store_true", help="open the page in the browser")
    add_backbone_option(made, several=False)
    add_trust_option(made)
    add_protocol_options(made, scores=False)
    return run(_serve, made, argv)


def _serve(options: argparse.Namespace) -> int:
    from guidino_tune import targets
    from guidino_tune.config import Protocol
    from guidino_tune.config.parsing import parse
    from guidino_tune.workflows.predict import load_model
    from guidino_tune.workflows.serve import is_loopback, serve

    targets.trust(*([targets.EVERYTHING] if options.trust else ()))
    protocol = parse(Protocol, protocol_values(options), "options")
    model = load_model(options.model, protocol=protocol, backbone=options.backbone[-1] if options.backbone else None)
    if not is_loopback(options.host):
        print(f"warning: whoever reaches {options.host} can use this page; it has no password", file=sys.stderr)

    def ready(address: str) -> None:
        print(f"{model.experiment.name} at {address}   (Ctrl-C ends it)", flush=True)
        if options.open:
            import webbrowser

            webbrowser.open(address)

    try:
        serve(model, str(options.model), host=options.host, port=options.port, ready=ready)
    except KeyboardInterrupt:
        print("ended")
    return 0


if __name__ == "__main__":
    sys.exit(main())
