# JupyterLab asks a server for news and for new versions unless it is told not to; nothing leaves this machine.
c = get_config()  # noqa: F821
c.LabApp.news_url = ""
c.LabApp.check_for_updates_class = "jupyterlab.NeverCheckForUpdate"
c.LabServerApp.extension_manager = "readonly"
c.LabApp.extension_manager = "readonly"
