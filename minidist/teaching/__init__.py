"""Learning to teach, and distillation of classifiers: students and teachers of labelled tasks, and the lessons between them."""
