"""Messages and the contract of chat templates. Knows no family."""

from glimmer.chat.message import Message, Role, to_messages
from glimmer.chat.template import ChatTemplate

__all__ = ["ChatTemplate", "Message", "Role", "to_messages"]
