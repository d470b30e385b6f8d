"""The local cloud: deploys the unchanged Pulumi program to an embedded AWS, without Docker.

project.py     the Pulumi project and the configuration of a stack
program.py     runs the program in this process, with a resource monitor of its own
engine.py      turns each registered resource into API calls
resources/     one file for each AWS service, one handler for each resource type
state.py       what is deployed, recorded in .taplocal/
emulator.py    starts, finds and stops MiniStack
server/        what runs in MiniStack's process and makes it behave as AWS does
keeper.py      keeps the emulator's state on disk
session.py     what the commands have in common: up, down, an opened environment
sources.py     finds the lines of functions for the stacks in their logs
logs.py        reads the logs as they come
dev.py         deploys what is saved, each change in a process of its own, which is watch.py
access.py      signs people and machines in and calls the deployed API
commands.py    the commands
ready.py       the process from which most of them are forked
__main__.py    the command line

The program never imports this package; this package knows the program only by running
it, and by its bundles where they are deployed without a run.
"""
