"""What people do: search, compare, retrain, reproduce, predict, and the checks before; with what they show and send."""
