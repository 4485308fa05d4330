"""What is found, as data: reports of counts and of measurements. No torch."""
