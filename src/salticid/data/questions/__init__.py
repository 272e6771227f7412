"""Writers of questions with short answers: pure functions of a photo's record and a random generator."""
