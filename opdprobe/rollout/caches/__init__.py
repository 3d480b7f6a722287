"""Caches of a teacher's top-k lists on fixed texts, as the teacher of given rollouts."""

from opdprobe.rollout.caches.cache import TeacherCache, find_cache

__all__ = ["TeacherCache", "find_cache"]
