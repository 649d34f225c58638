"""What a correct kernel's errors may be: by row from an ensemble of valid orders."""
