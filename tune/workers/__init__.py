"""The processes of a trial: started, watched, and ended with everything they started.

Ray's worker groups run ranks as actors. That is not enough for a trial, as
``tests/tune/test_libraries.py`` shows:

- ``test_ray_does_not_tell_how_an_actor_ended``: an actor that was killed, one that crashed and one
  that left with an exit code all end with the same error, but a killed trial goes on, and one whose
  loss is no number does not.
- ``test_ray_gives_the_ranks_a_port_that_another_process_can_take``: it looks a free port up and
  binds it later.
- ``test_torch_waits_for_the_lock_of_a_process_that_is_gone``: it does so when it loads the operator
  that DeepSpeed compiles; Ray has nothing about it (``operators``).

The ranks see an environment without anything that Ray has set (``environment``), and tie their
lives to their actor's (``child``), because they have process groups of their own, which Ray does
not end.
"""
