"""lcjax audit: is there anything long-range to learn in the data?"""
