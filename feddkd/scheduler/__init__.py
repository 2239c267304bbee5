"""What a round is: a cohort, a sequence of exchanges, a quorum, and a record of each."""
