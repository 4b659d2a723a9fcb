"""How many steps per second a server gives to so many workers: the run's own state machines under a simulated clock."""
