"""The campaign: faults, hostile files and other visitors against the real product. Not collected by pytest,
not in CI.

    make soak                          every part, some hours on two quiet cores
    make soak ARGS="fuzz chat"         these parts
    make soak ARGS="--scale 0.05"      a twentieth of every count and time, to see that the parts work

A part is a module of this package with one function, `run(campaign)`. It starts what it needs (app.py in a
process of its own, on a home of its own, on 127.0.0.1), does its faults, and counts how each try ended in the
campaign's ledger. A part's loops are bounded in count and in time: an hour for the whole part, or the
LONGEST_SECONDS that its module declares. It is told what "right" is by the
product's documents, not by the product's code.
"""

PARTS = {  # name -> what it tries
    "fuzz": "20,000 requests to every server function: valid ones bent, arbitrary JSON, raw bodies",
    "models": "100 hostile model folders and tampered artifacts, a process each",
    "kill_workers": "200 kills of run workers at random moments",
    "kill_app": "20 kills of the app at random moments",
    "disks": "eight sizes of disk, a run and a download on each",
    "homes": "homes that can't be written, odd names, no HOME",
    "memory": "limits of memory, too low for the run",
    "visitors": "50 visitors for ten minutes, with runs and chat going on",
    "two_apps": "two live apps on one home",
    "chat": "ten minutes of chat with stops, kills, hostile templates, huge prompts",
    "strangers": "runs of others, foreign sites, closed endpoints",
}
