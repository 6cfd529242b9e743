"""One module per version. A version that was released is never edited."""
