"""Objects in object stores that jobs learn from: which may be read, and how they come to a job."""
