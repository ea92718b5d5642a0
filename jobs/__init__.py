"""What a person or a cluster starts: the `lowrank` command and its campaign specs."""
