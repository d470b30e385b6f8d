"""The local cloud: deploys the unchanged Pulumi program onto an embedded AWS, without Docker.

    engine.py      runs the program in this process and turns each registered resource into API
    calls resources/     one file per AWS service, one handler per resource type state.py       what
    is deployed, kept beside the emulator's data in .taplocal/ emulator.py    starts, finds and
    stops MiniStack access.py      signs people and machines in and calls the deployed API
    __main__.py    the command line; demo.py the demonstration

The stack never imports this package; this package knows the stack only by running it.
"""
