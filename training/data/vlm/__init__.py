"""Images with questions and answers, as the Hub has them."""
