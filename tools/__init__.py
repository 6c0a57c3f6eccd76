"""What builds and checks the project. Nothing of it is installed."""
