"""The members' embeddings in; rankings, matching, submission and leaderboard out."""
