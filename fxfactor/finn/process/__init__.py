"""FINN in a process of its own: started, listened to, its models kept; and the scripts that run there."""
