"""The measurements for the README, and public programs beside ours."""
