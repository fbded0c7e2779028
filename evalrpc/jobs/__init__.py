"""What a job is: its states and transitions, its id, its folders, and which metrics a selector takes."""
