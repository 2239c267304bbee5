"""What `feddkd report` makes of the records of runs: pictures, and one page that holds them all."""
