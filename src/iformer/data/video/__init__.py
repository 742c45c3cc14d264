"""Frames of video files, cameras and streams, and writing of videos."""
