"""What stopping draws early saves and loses: hypervolume per compute.

table     curves of trials, synthetic ones or a campaign's
ways      nobody stopped, `search.stopping`, Ray Tune's ASHA, each through a table
campaign  the campaign of campaign.yaml, with and without `search.stopping`
page      what is written
"""
