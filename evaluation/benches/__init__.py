"""What is measured for the README, and public programs beside ours."""
