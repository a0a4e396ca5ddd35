"""What a student is worth: accuracy, ROUGE-L, divergence to its teacher, and how its text looks."""
