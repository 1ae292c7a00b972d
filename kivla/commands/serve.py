"""`kivla serve`: a policy server that openpi's clients, and the robots that use them, can talk to."""

import asyncio
import logging
from collections.abc import Sequence

from ..command_line import parse, policy_pipeline
from ..serving.served_policy import ServeArguments, make_server, serve_until_stopped


def run(arguments: Sequence[str]) -> None:
    (args,) = parse((ServeArguments,), arguments, prog="kivla serve", positional="model")
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("kivla").setLevel(logging.INFO)
    names = ("acts_by", "num_steps", "noise_scale", "seed", "clip_actions", "reuse_prefix", "dtype")
    pipe = policy_pipeline(args.model, args.trust_remote_code, **{name: getattr(args, name) for name in names})
    if args.compile_expert:
        pipe.model.compile_expert()
    if args.compile_policy:
        pipe.model.compile_policy(pack_weights=args.pack_weights)
    asyncio.run(serve_until_stopped(make_server(pipe, args), args.host, args.port))
