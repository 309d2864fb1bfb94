"""A run from the request to the stored result: estimate, worker, stages, witness; and the chat."""
