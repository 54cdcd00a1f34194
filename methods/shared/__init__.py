"""What several methods share: masks, schedules, statistics, low-rank updates."""
